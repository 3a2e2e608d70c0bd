"""What driver, agents and workers say to each other, and the pipes it travels over."""
