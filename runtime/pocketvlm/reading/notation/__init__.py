"""The notations in which document models write pages, as Markdown and as plain text. Pure."""
