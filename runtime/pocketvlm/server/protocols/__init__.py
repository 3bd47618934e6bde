"""The APIs that the server speaks: each translates to the one request, and from the one stream of chunks."""
