"""What a whole study says: cells over seeds, the statistics drawn from them, and the page that shows both."""
