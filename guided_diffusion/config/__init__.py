"""Typed configurations, the flags made from them, and what is built from them."""
