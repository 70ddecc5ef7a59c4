"""`ed-dpm tune`: which rule, scale and interval, by successive halving over short runs that share their noise."""
