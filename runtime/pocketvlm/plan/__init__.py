"""What a model takes here, in memory and time, before its weights are loaded; and what to choose so that it fits."""
