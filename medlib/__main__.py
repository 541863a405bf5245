from medlib.cli import main

main()
