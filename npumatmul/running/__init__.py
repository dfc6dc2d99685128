"""From a plan to results: contexts and workspaces, weights in device memory, and the calls that run them."""
