"""Whether a bundle still does what its checkpoint does."""
