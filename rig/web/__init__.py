"""The page in the browser: access control, live view, recorded slides, reviews and downloads."""
