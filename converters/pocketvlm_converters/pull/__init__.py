"""From the hub to a bundle: the one part of pocketvlm that uses the network, and only when it is told to."""
