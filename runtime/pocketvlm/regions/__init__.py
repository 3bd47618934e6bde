"""Places in pictures: how models write them in answers, and where they are in the pictures' own pixels."""
