"""Suites: attacks on one model, judged by the harness, and certificates beside them."""
