"""Types of the weights, and the importance matrices that some of them need."""
