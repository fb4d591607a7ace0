"""Parts that only the config `mini` has: the pose stem and the body token."""
