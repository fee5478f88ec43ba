"""What every entry of a table must do, as functions that need no pytest: for our tests and for other packages'.

`methods`, `attacks`, `datasets` and `checks` each have functions `..._contract(entry)`, which give the checks by name:

    CHECKS = method_contract(Toy())

    @pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
    def test_toy(check):
        check()
"""
