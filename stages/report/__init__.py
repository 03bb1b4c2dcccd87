"""The stage `report`: everything upstream in, pages for people out."""
