"""What a person looks at: curves and pictures of a run."""
