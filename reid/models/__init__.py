"""Networks, the files that keep their weights, and calibration of their statistics."""
