"""`launch doctor`: checks a machine, or the nodes of a cluster, before GPU hours are burnt."""
