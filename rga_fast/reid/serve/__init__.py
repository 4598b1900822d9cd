"""The web page that searches an index (extra `web`)."""
