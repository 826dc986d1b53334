"""Algorithms. One file each; importing the folder through the registry registers them."""
