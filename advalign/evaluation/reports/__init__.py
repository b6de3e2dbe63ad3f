"""Reports: pages of tables and plots, the comparison of two runs, and exports for other tools."""
