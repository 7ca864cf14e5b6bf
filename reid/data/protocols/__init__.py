"""Published data sets: tables that describe how their files become samples and how they are scored."""
