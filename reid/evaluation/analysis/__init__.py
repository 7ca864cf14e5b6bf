"""What lies behind the scores: intervals, thresholds, pairs of cameras, drift, and advice on cameras."""
