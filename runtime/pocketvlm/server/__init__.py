"""HTTP: the APIs that clients speak, one queue for each model, access control, metrics."""
