"""Server: HTTP in front, engine and detokenizer processes behind."""
