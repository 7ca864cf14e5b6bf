"""Published data sets: tables that say how their files become samples and how they are scored."""
