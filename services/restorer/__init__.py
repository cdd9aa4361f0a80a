"""The restorer: takes chosen events out of a recording and restores what they covered."""
