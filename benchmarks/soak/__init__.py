"""What is promised never to happen, tried many times: growth, loss, damage unseen, a crash.

One file per attack, each with a function of its name, which prints what it counted and raises
AssertionError where a promise is not kept.
"""
