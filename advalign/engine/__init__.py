"""One update of one learner. Plan what has to run, split it under a budget, run every view once, sum, descend."""
