"""What a study or a suite would cost, without running it."""
