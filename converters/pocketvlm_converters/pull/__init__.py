"""Download from the hub and make a bundle: the only part of pocketvlm that uses the network, on explicit request."""
