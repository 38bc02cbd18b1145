"""The smallest environment there can be, and the template for others."""
