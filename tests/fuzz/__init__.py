"""Damage files and requests by their structure, and see that pocketvlm answers or refuses each in one line."""
