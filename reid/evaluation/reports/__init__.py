"""Reports for people and programs: text, JSON, HTML pages, charts, and the difference of two results."""
