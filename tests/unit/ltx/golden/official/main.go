// Writes the official-*.ltx vectors with the LTX library that Litestream uses (github.com/superfly/ltx v0.5.2), and
// verifies the files named on the command line with it.
//
//	go mod init vectors && go get github.com/superfly/ltx@v0.5.2 && go run main.go -out .. [FILE.ltx...]
package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"

	"github.com/superfly/ltx"
)

func textPage(pgno uint32, seed byte, size int) []byte {
	page := make([]byte, size)
	for i := range page {
		page[i] = "a row of text, "[i%15] + byte(pgno) + seed
		if i%97 == 0 {
			page[i] = byte(i / 97)
		}
	}
	return page
}

type page struct {
	pgno uint32
	data []byte
}

func write(path string, header ltx.Header, post ltx.Checksum, pages []page) {
	f, err := os.Create(path)
	check(err)
	enc, err := ltx.NewEncoder(f)
	check(err)
	check(enc.EncodeHeader(header))
	for _, p := range pages {
		check(enc.EncodePage(ltx.PageHeader{Pgno: p.pgno}, p.data))
	}
	enc.SetPostApplyChecksum(post)
	check(enc.Close())
	check(f.Close())
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func main() {
	out := flag.String("out", "", "directory for the vectors")
	flag.Parse()
	if *out != "" {
		var snapshot []page
		sum := ltx.ChecksumFlag
		for pgno := uint32(1); pgno <= 4; pgno++ {
			data := textPage(pgno, 0, 4096)
			snapshot = append(snapshot, page{pgno, data})
			sum = ltx.ChecksumFlag | (sum ^ ltx.ChecksumPage(pgno, data))
		}
		write(filepath.Join(*out, "official-snapshot.ltx"), ltx.Header{Version: ltx.Version, PageSize: 4096, Commit: 4,
			MinTXID: 1, MaxTXID: 3, Timestamp: 1700000000456, NodeID: 7}, sum, snapshot)
		changes := []page{{2, textPage(2, 1, 4096)}, {5, textPage(5, 1, 4096)}}
		write(filepath.Join(*out, "official-changes.ltx"), ltx.Header{Version: ltx.Version, PageSize: 4096, Commit: 5,
			MinTXID: 4, MaxTXID: 4, Timestamp: 1700000000789, PreApplyChecksum: sum}, ltx.ChecksumFlag|99, changes)
	}
	for _, path := range flag.Args() {
		f, err := os.Open(path)
		check(err)
		dec := ltx.NewDecoder(f)
		check(dec.Verify())
		fmt.Println(path, dec.Header().MinTXID, dec.Header().MaxTXID, dec.Trailer().PostApplyChecksum)
	}
}
