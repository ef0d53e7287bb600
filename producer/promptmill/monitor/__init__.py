"""The monitor: Flower with promptmill's settings, nothing private in it, and a page of the fleet.

Needs the packages of ``promptmill[monitor]``; nothing else of promptmill imports it.
"""
