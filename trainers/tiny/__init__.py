"""The bundled tiny CLIP's files and how it was trained; see README.md here."""
