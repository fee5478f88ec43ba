"""Process 1 of the containers, and the files that stand a cluster up."""
