"""Two ways to transfer: a new head on a frozen backbone, or everything trained with the mask held."""
