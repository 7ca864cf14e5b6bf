"""Analysis of scores and cameras: intervals, thresholds, pairs of cameras, drift, and advice on cameras."""
