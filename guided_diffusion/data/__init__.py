"""Images and labels from folders, in order and by seed."""
