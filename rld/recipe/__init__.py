"""What a recipe may say, and how it is read and checked. Nothing here imports a tensor library."""
