"""A package, because some installed distributions bring a `tests` of their own, which would be found first."""
