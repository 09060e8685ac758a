"""Reads rows from files, folders and the hub, and brings them into the form that tokenisation takes."""
