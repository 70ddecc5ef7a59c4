"""What several processes do together: meet, talk, stop, show progress."""
