#!/bin/sh
# The manual as web pages, from the same sources as the manual pages and guides: doc/site.sh SOURCE BUILD OUT
#
# Guides and documents by cmark-gfm, manual pages by mandoc; nothing is loaded from elsewhere.  OUT is made anew and appears whole or not
# at all.
set -eu
source=$1 build=$2 out=$3
for tool in cmark-gfm mandoc; do
    command -v $tool >/dev/null || { echo "make html needs $tool (the Debian package of that name)" >&2; exit 1; }
done
version=$(sed -n 's/^AC_INIT(\[nearcache\], \[\(.*\)\])$/\1/p' "$source/configure.ac")
new=$out.new
rm -rf "$new"
mkdir -p "$new"

guides="cache-aside feature-serving settings write-back memcached-or-redis redis-cluster moving security troubleshooting"
documents="guarantees architecture testing rules races"

title_of() # the first heading of a document
{
    sed -n '/^# /{s/^# //; s/: .*//; s/, by metric//; p; q;}' "$1"
}

link() # link PAGE TITLE CURRENT
{
    [ "$1" = "$3" ] && mark=' aria-current="page"' || mark=
    printf '<li><a href="%s.html"%s>%s</a></li>\n' "$1" "$mark" "$2"
}

navigation() # navigation CURRENT
{
    printf '<p class="brand"><a href="index.html">nearcache</a> <span>%s</span></p>\n' "$version"
    printf '<ul>\n'
    link index "Start" "$1"
    link nearcache.7 "Overview" "$1"
    printf '</ul>\n<h2>Guides</h2>\n<ul>\n'
    for guide in $guides; do
        link "$guide" "$(title_of "$source/doc/guide/$guide.md")" "$1"
    done
    printf '</ul>\n<h2>Reference</h2>\n<ul>\n'
    link nearcache.3 "Functions" "$1"
    link nearcache.conf.5 "Options" "$1"
    link nearcache-metrics.7 "Metrics" "$1"
    link nearcache.1 "The command" "$1"
    link nearcache-backend.3 "Backends of your own" "$1"
    printf '</ul>\n<h2>Inside</h2>\n<ul>\n'
    for document in $documents; do
        link "$document" "$(title_of "$source/doc/$document.md")" "$1"
    done
    link news "News" "$1"
    printf '</ul>\n'
}

page() # page NAME TITLE KIND: the body from standard input
{
    {
        printf '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        printf '<meta name="viewport" content="width=device-width, initial-scale=1">\n<meta name="color-scheme" content="light dark">\n'
        printf '<title>%s - nearcache</title>\n<link rel="stylesheet" href="style.css">\n</head>\n<body>\n' "$2"
        printf '<a class="skip" href="#content">Skip to the text</a>\n<nav aria-label="Pages">\n<details open>\n<summary>Pages</summary>\n'
        navigation "$1"
        printf '</details>\n</nav>\n<main id="content" class="%s">\n' "$3"
        cat
        printf '</main>\n</body>\n</html>\n'
    } >"$new/$1.html"
}

# headings get names to link to; links between documents become links between pages; wide tables scroll by themselves
markdown() # markdown FILE
{
    cmark-gfm --extension table --extension autolink "$1" | awk '
        /^<h[1-4]>/ {
            slug = tolower($0)
            gsub(/<[^>]*>|&[a-z]+;/, "", slug); gsub(/[^a-z0-9 _-]/, "", slug); gsub(/ /, "-", slug)
            sub(/^<h[1-4]/, "& id=\"" slug "\"")
        }
        /raw HTML omitted/ { next }
        { gsub(/<table>/, "<div class=\"table\"><table>"); gsub(/<\/table>/, "</table></div>"); print }' |
        sed -e 's|href="[^":#]*README\.md|href="index.html|g' -e 's|href="[^":#]*NEWS"|href="news.html"|g' \
            -e 's|href="\([^":#]*/\)\{0,1\}\([a-z-]*\)\.md|href="\2.html|g'
}

# references to pages of ours become links
manual() # manual FILE
{
    case $(basename "$1") in
    near_*) contents= ;; # of a function: one screen
    *) contents=toc, ;;
    esac
    mandoc -T html -O "fragment,${contents}man=%N.%S.html" "$1" |
        sed -E -e 's|<b>(near[a-z0-9_.-]*)</b>\(([1357])\)|<a href="\1.\2.html"><b>\1</b>(\2)</a>|g'
}

cp "$source/doc/style.css" "$new/style.css"
markdown "$source/README.md" | page index "nearcache" text
for guide in $guides; do
    markdown "$source/doc/guide/$guide.md" | page "$guide" "$(title_of "$source/doc/guide/$guide.md")" text
done
for document in $documents; do
    markdown "$source/doc/$document.md" | page "$document" "$(title_of "$source/doc/$document.md")" text
done
{
    printf '<h1>News</h1>\n<pre class="news">'
    sed -e 's/&/\&amp;/g; s/</\&lt;/g; s/>/\&gt;/g' "$source/NEWS"
    printf '</pre>\n'
} | page news News text
for file in "$build"/doc/man/*.[1357] "$build"/doc/man/man3/*.3 "$source"/doc/man/*.7; do
    name=$(basename "$file")
    [ -e "$new/$name.html" ] || manual "$file" | page "$name" "${name%.*}(${name##*.})" man
done

# every link leads somewhere
broken=$(cd "$new" && grep -ohE 'href="[^"#:]+' *.html | sed 's/href="//' | sort -u | while read -r target; do
    [ -e "$target" ] || echo "$target"
done)
[ -z "$broken" ] || { echo "links that lead nowhere:" $broken >&2; exit 1; }
! grep -lE '(src|href)="(https?:)?//' "$new"/*.html >&2 || echo "(these pages link elsewhere)"
rm -rf "$out"
mv "$new" "$out"
echo "$(ls "$out" | wc -l) files in $out"
