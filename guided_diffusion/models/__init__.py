"""The networks, and the forms in which they are trained and evaluated."""
