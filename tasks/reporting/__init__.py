"""The page that the stage report writes, and what it is made of."""
