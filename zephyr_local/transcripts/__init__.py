"""Durable chats: an SQLite store that is told of every piece before the screen is."""
