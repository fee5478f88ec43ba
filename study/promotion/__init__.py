"""From a finished study to a champion: candidates, proof, gates, HEAD."""
