"""Tables, each declared once as columns of its rows, for the terminal and for the page."""
